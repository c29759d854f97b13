//! What a client shows a service: an API key, a certificate; and whom it trusts.

use std::fmt;

use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Identity},
};

use crate::Error;

/// A connection that shows the API key with every request, and the trace it is part of.
pub type Transport = InterceptedService<Channel, Headers>;

/// What a client shows, and whom it trusts. By default nothing, and the system's
/// certificate authorities.
#[derive(Clone, Default)]
pub struct Credentials {
    /// Shown with every request.
    pub api_key: Option<ApiKey>,
    /// Certificate authorities to trust instead of the system's (PEM).
    pub ca_cert: Option<Vec<u8>>,
    /// Certificate chain and private key (PEM) for services that ask for one.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Credentials {
    pub(crate) fn headers(&self) -> Headers {
        Headers {
            authorization: self.api_key.as_ref().map(|key| key.0.clone()),
            traceparent: None,
        }
    }

    pub(crate) fn tls(&self) -> ClientTlsConfig {
        let tls = match &self.ca_cert {
            None => ClientTlsConfig::new().with_native_roots(),
            Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
        };
        match &self.identity {
            None => tls,
            Some((cert, key)) => tls.identity(Identity::from_pem(cert, key)),
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("api_key", &self.api_key)
            .field("ca_cert", &self.ca_cert.is_some())
            .field("identity", &self.identity.is_some())
            .finish()
    }
}

/// An API key, which never shows up in debug output.
#[derive(Clone)]
pub struct ApiKey(MetadataValue<Ascii>);

impl ApiKey {
    /// A key as `steer keys new` printed it; white space around it is left out.
    ///
    /// # Errors
    /// If it cannot be a key.
    pub fn new(text: &str) -> Result<Self, Error> {
        let text = text.trim();
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Error::InvalidApiKey);
        }
        let header: Result<MetadataValue<Ascii>, _> = format!("Bearer {text}").parse();
        let mut header = header.map_err(|_| Error::InvalidApiKey)?;
        header.set_sensitive(true);
        Ok(Self(header))
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// What goes with every request.
#[derive(Debug, Clone)]
pub struct Headers {
    authorization: Option<MetadataValue<Ascii>>,
    pub(crate) traceparent: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Headers {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let headers = request.metadata_mut();
        if let Some(value) = &self.authorization {
            headers.insert("authorization", value.clone());
        }
        if let Some(value) = &self.traceparent {
            headers.insert("traceparent", value.clone());
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_checked_and_never_shown() {
        let key = ApiKey::new(" steer_0123\n").expect("a key");
        assert_eq!(key.0.to_str().expect("text"), "Bearer steer_0123");
        let credentials = Credentials {
            api_key: Some(key),
            ..Credentials::default()
        };
        assert!(!format!("{credentials:?} {:?}", credentials.headers()).contains("0123"));
        for wrong in ["", "  ", "two words", "schlüssel"] {
            assert!(ApiKey::new(wrong).is_err(), "{wrong}");
        }
    }
}
