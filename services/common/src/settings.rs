//! Settings from the command line, the environment and a file, in this order.

use std::{
    env,
    ffi::{OsStr, OsString},
    fmt::Write as _,
    fs,
    path::Path,
};

use clap::{Arg, ArgAction, ArgMatches, Command, Parser, error::ErrorKind, parser::ValueSource};

/// Flags that are about settings, and no settings themselves.
const NOT_SETTINGS: [&str; 5] = ["config", "print-config", "stop-with", "help", "version"];

/// Reads all settings. Ends the process where clap would: for `--help`, `--print-config`,
/// and what cannot be understood.
pub fn load<C: Parser>() -> C {
    match load_from(env::args_os().collect()) {
        Ok(Loaded::Run(config)) => config,
        Ok(Loaded::Print(text)) => {
            print!("{text}");
            std::process::exit(0)
        }
        Err(error) => error.exit(),
    }
}

/// What a command line asks for.
#[derive(Debug)]
pub enum Loaded<C> {
    /// To run with these settings.
    Run(C),
    /// `--print-config`.
    Print(String),
}

/// As [`load`], of a given command line.
///
/// # Errors
/// If it or the file it names cannot be understood.
pub fn load_from<C: Parser>(args: Vec<OsString>) -> Result<Loaded<C>, clap::Error> {
    let command = without_empty(C::command());
    // A first look, at what is there: something required may be in the file.
    let given = command.clone().ignore_errors(true).get_matches_from(&args);
    let from_file = match given.try_get_one::<std::path::PathBuf>("config") {
        Ok(Some(path)) => file_args(&command, &given, path).map_err(|error| {
            C::command().error(
                ErrorKind::InvalidValue,
                format!("--config {}: {error}", path.display()),
            )
        })?,
        _ => Vec::new(),
    };
    let mut all = args;
    let behind_program = all.len().min(1);
    let file_names: Vec<String> = from_file.iter().map(|(name, _)| name.clone()).collect();
    all.splice(
        behind_program..behind_program,
        from_file.into_iter().map(|(_, arg)| arg.into()),
    );
    let matches = command.clone().try_get_matches_from(all)?;
    if matches.get_flag("print_config") {
        return Ok(Loaded::Print(print(&command, &matches, &file_names)));
    }
    C::from_arg_matches(&matches).map(Loaded::Run)
}

/// A variable that is set to nothing is not set: that is how manifests leave one out.
fn without_empty(command: Command) -> Command {
    command.mut_args(|arg| {
        let value = arg.get_env().and_then(env::var_os);
        if value.is_some_and(|value| value.is_empty()) {
            arg.env(None::<&'static str>)
        } else {
            arg
        }
    })
}

/// Entries of a file as flags, but for those that the command line or the environment has.
fn file_args(
    command: &Command,
    given: &ArgMatches,
    path: &Path,
) -> Result<Vec<(String, String)>, String> {
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    let table: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| error.to_string())?;
    let mut args = Vec::new();
    for (name, value) in table {
        let arg = settings(command).find(|arg| arg.get_long() == Some(&name));
        let Some(arg) = arg else {
            let known: Vec<&str> = settings(command).filter_map(Arg::get_long).collect();
            return Err(format!(
                "{name:?} is no setting; there are {}",
                known.join(", ")
            ));
        };
        let source = given.value_source(arg.get_id().as_str());
        if matches!(
            source,
            Some(ValueSource::CommandLine | ValueSource::EnvVariable)
        ) {
            continue;
        }
        for value in flags(arg, &value).ok_or_else(|| format!("{name}: cannot be {value}"))? {
            args.push((name.clone(), value));
        }
    }
    Ok(args)
}

/// A value as flags: a list is a repeated one, `true` one without a value.
fn flags(arg: &Arg, value: &toml::Value) -> Option<Vec<String>> {
    let name = arg.get_long()?;
    let is_switch = matches!(arg.get_action(), ArgAction::SetTrue);
    let flag = |value: &toml::Value| {
        let text = match value {
            toml::Value::String(text) => text.clone(),
            toml::Value::Integer(n) => n.to_string(),
            toml::Value::Float(x) => x.to_string(),
            _ => return None,
        };
        (!is_switch).then(|| format!("--{name}={text}"))
    };
    match value {
        toml::Value::Boolean(on) if is_switch => {
            Some(on.then(|| format!("--{name}")).into_iter().collect())
        }
        toml::Value::Array(values) if matches!(arg.get_action(), ArgAction::Append) => {
            values.iter().map(flag).collect()
        }
        single => Some(vec![flag(single)?]),
    }
}

fn settings(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|arg| {
        arg.get_long()
            .is_some_and(|name| !NOT_SETTINGS.contains(&name))
    })
}

/// Every setting in effect, as a file that would give the same, but for secrets: settings
/// whose values in the environment are hidden.
fn print(command: &Command, matches: &ArgMatches, from_file: &[String]) -> String {
    let mut text = String::new();
    for arg in settings(command) {
        let (id, name) = (arg.get_id().as_str(), arg.get_long().unwrap_or_default());
        let values: Vec<&OsStr> = matches.get_raw(id).into_iter().flatten().collect();
        let source = match matches.value_source(id) {
            Some(ValueSource::CommandLine) if from_file.iter().any(|file| file == name) => "file",
            Some(ValueSource::CommandLine) => "command line",
            Some(ValueSource::EnvVariable) => "environment",
            _ => "default",
        };
        if arg.is_hide_env_values_set() && !values.is_empty() {
            let _ = writeln!(text, "# {name} is set and secret  # {source}");
            continue;
        }
        let written: Vec<String> = values.iter().map(|value| literal(arg, value)).collect();
        // Writing to a String cannot fail.
        let _ = match (arg.get_action(), written.as_slice()) {
            (_, []) => writeln!(text, "# {name} is not set"),
            (ArgAction::Append, many) => {
                writeln!(text, "{name} = [{}]  # {source}", many.join(", "))
            }
            (_, [one, ..]) => writeln!(text, "{name} = {one}  # {source}"),
        };
    }
    text
}

fn literal(arg: &Arg, value: &OsStr) -> String {
    let text = value.to_string_lossy();
    let plain = match arg.get_action() {
        ArgAction::SetTrue => text.parse::<bool>().is_ok(),
        _ => text.parse::<i64>().is_ok(),
    };
    if plain {
        text.into_owned()
    } else {
        toml::Value::String(text.into_owned()).to_string()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::config::{Operation, Security};

    #[derive(Debug, Parser)]
    struct Config {
        #[arg(long)]
        model: String,
        #[arg(long = "root")]
        roots: Vec<String>,
        #[command(flatten)]
        security: Security,
        #[command(flatten)]
        operation: Operation,
    }

    fn run(args: &[&str]) -> Result<Loaded<Config>, clap::Error> {
        let program = std::iter::once("service");
        load_from(
            program
                .chain(args.iter().copied())
                .map(OsString::from)
                .collect(),
        )
    }

    fn file(text: &str) -> (tempfile::NamedTempFile, String) {
        let mut file = tempfile::NamedTempFile::new().expect("file");
        file.write_all(text.as_bytes()).expect("written");
        let flag = format!("--config={}", file.path().display());
        (file, flag)
    }

    #[test]
    fn flags_go_before_the_file() {
        let (_file, flag) = file(
            "model = 'm'\nroot = ['a', 'b']\ndrain-timeout = 7\nmax-streams = 9\n\
             allow-unauthenticated = true\n",
        );
        let Loaded::Run(config) = run(&[&flag, "--max-streams=8"]).expect("settings") else {
            panic!("does not run");
        };
        assert_eq!((config.model.as_str(), config.roots.len()), ("m", 2));
        assert_eq!(config.operation.drain_timeout, 7);
        assert_eq!(config.operation.max_streams, 8);
        assert!(config.security.allow_unauthenticated);
    }

    #[test]
    fn what_is_printed_can_be_read_again() {
        let (_file, flag) = file("model = 'a \"b\"'\nroot = ['a']\n");
        let Loaded::Print(text) =
            run(&[&flag, "--print-config", "--drain-delay=3"]).expect("settings")
        else {
            panic!("does not print");
        };
        assert!(text.contains("drain-delay = 3  # command line"), "{text}");
        assert!(text.contains("drain-timeout = 30  # default"), "{text}");
        assert!(text.contains("# api-keys is not set"), "{text}");
        let (_again, flag) = file(&text);
        let Loaded::Run(config) = run(&[&flag]).expect("settings") else {
            panic!("does not run");
        };
        assert_eq!(config.model, "a \"b\"");
        assert_eq!(config.operation.drain_delay, 3);
    }

    #[test]
    fn files_with_mistakes_are_refused() {
        for (text, blamed) in [
            ("modell = 'm'", "modell"),
            ("model = [1]", "model"),
            ("drain-timeout = 'soon'\nmodel = 'm'", "drain-timeout"),
            ("allow-unauthenticated = 'yes'", "allow-unauthenticated"),
            ("model", "--config"),
        ] {
            let (_file, flag) = file(text);
            let error = run(&[&flag]).expect_err(text).to_string();
            assert!(error.contains(blamed), "{text}: {error}");
        }
        assert!(run(&["--config=/none/such"]).is_err());
        assert!(run(&[]).is_err(), "the model is required");
    }
}
