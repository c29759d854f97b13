//! Certificates made for a test.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, date_time_ymd,
};

/// A certificate authority.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub(crate) struct Issued {
    pub(crate) cert: String,
    pub(crate) key: String,
}

/// What is odd about a certificate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Odd {
    Nothing,
    Expired,
    NotYetValid,
    OtherName,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("key");
        Self(CertifiedIssuer::self_signed(params, key).expect("authority"))
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// For `localhost` and 127.0.0.1.
    pub(crate) fn server(&self, odd: Odd) -> Issued {
        self.issue(odd, ExtendedKeyUsagePurpose::ServerAuth)
    }

    pub(crate) fn client(&self, odd: Odd) -> Issued {
        self.issue(odd, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn issue(&self, odd: Odd, usage: ExtendedKeyUsagePurpose) -> Issued {
        let names = match odd {
            Odd::OtherName => vec!["elsewhere.example".to_owned()],
            _ => vec!["localhost".to_owned(), "127.0.0.1".to_owned()],
        };
        let mut params = CertificateParams::new(names).expect("parameters");
        params.extended_key_usages = vec![usage];
        match odd {
            Odd::Expired => params.not_after = date_time_ymd(2020, 1, 1),
            Odd::NotYetValid => params.not_before = date_time_ymd(2900, 1, 1),
            Odd::Nothing | Odd::OtherName => {}
        }
        let key = KeyPair::generate().expect("key");
        let cert = params.signed_by(&key, &self.0).expect("certificate");
        Issued {
            cert: cert.pem(),
            key: key.serialize_pem(),
        }
    }
}

/// Writes a file of a test.
pub(crate) fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).expect("written");
    path
}
