//! `[telemetry]`, and the `OTEL_…` variables that other programs read, too.
//!
//! The variables go before the file, as everywhere. They are often set for a whole cluster, with
//! other programs in mind: what is wrong with one is a warning, not an error, and never a reason
//! not to start.

use std::collections::BTreeMap;

use clearway_engine::upstream::Endpoint;

use super::walk::{Table, Walk};
use super::{Env, Sampling, Secret, Telemetry};

const EXAMPLE: &str = "http://127.0.0.1:4318";

/// `None` when spans are exported nowhere.
pub(super) fn read(table: Table<'_>) -> Option<Telemetry> {
    let walk = table.walk;
    let file = table.get("otlp").and_then(|value| value.address(Endpoint::parse, EXAMPLE));
    table.finish();
    if is_off(walk) {
        return None;
    }
    let endpoint = endpoint(walk).or_else(|| file.map(|base| traces_of(&base)))?;
    let env = walk.env;
    let mut resource: BTreeMap<String, String> = pairs(walk, "OTEL_RESOURCE_ATTRIBUTES").collect();
    if let Some(name) = env.get("OTEL_SERVICE_NAME") {
        resource.insert("service.name".to_owned(), name.trim().to_owned());
    }
    resource.entry("service.name".to_owned()).or_insert_with(|| "clearway".to_owned());
    let headers = first_set(env, &["OTEL_EXPORTER_OTLP_TRACES_HEADERS", GENERAL_HEADERS])
        .map_or(GENERAL_HEADERS, |(name, _)| name);
    Some(Telemetry {
        endpoint,
        headers: pairs(walk, headers)
            .filter_map(|header| sendable(walk, headers, header))
            .collect(),
        resource,
        sampling: sampling(walk),
    })
}

const GENERAL_HEADERS: &str = "OTEL_EXPORTER_OTLP_HEADERS";

/// What the environment says about not exporting, or not in the way that is spoken here.
fn is_off(walk: &Walk<'_>) -> bool {
    let env = walk.env;
    let is = |name: &str, wanted: &str| {
        env.get(name).is_some_and(|value| value.trim().eq_ignore_ascii_case(wanted))
    };
    if is("OTEL_SDK_DISABLED", "true") || is("OTEL_TRACES_EXPORTER", "none") {
        return true;
    }
    let protocols = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
    if let Some((name, protocol)) = first_set(env, &protocols)
        && protocol != "http/protobuf"
    {
        walk.warn(format!("{name}: spans are exported as http/protobuf, not as {protocol}"));
    }
    false
}

/// The address for traces is taken as it is; the one for everything gets their path.
fn endpoint(walk: &Walk<'_>) -> Option<String> {
    let traces = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
    let (name, url) = first_set(walk.env, &[traces, "OTEL_EXPORTER_OTLP_ENDPOINT"])?;
    let url = if name == traces { url.to_owned() } else { traces_of(url) };
    if Endpoint::parse(&url).is_err() {
        // People put passwords into addresses, so it is not shown.
        walk.warn(format!("{name} is no address such as {EXAMPLE}, and has no effect"));
        return None;
    }
    Some(url)
}

fn traces_of(base: &str) -> String {
    format!("{}/v1/traces", base.trim_end_matches('/'))
}

fn sampling(walk: &Walk<'_>) -> Sampling {
    let Some(name) = walk.env.get("OTEL_TRACES_SAMPLER").map(str::trim) else {
        return Sampling::default();
    };
    let (root, follow_parent) = match name.strip_prefix("parentbased_") {
        Some(root) => (root, true),
        None => (name, false),
    };
    let ratio = match root {
        "always_on" => Some(1.0),
        "always_off" => Some(0.0),
        "traceidratio" => match walk.env.get("OTEL_TRACES_SAMPLER_ARG") {
            None => Some(1.0),
            Some(text) => {
                text.trim().parse().ok().filter(|ratio: &f64| (0.0..=1.0).contains(ratio))
            }
        },
        _ => None,
    };
    match ratio {
        Some(ratio) => Sampling { ratio, follow_parent },
        None => {
            walk.warn(format!(
                "OTEL_TRACES_SAMPLER `{name}` or its argument is not understood: every trace is \
                 exported"
            ));
            Sampling::default()
        }
    }
}

/// `name=value,name=value`, the values percent-encoded.
fn pairs<'a>(walk: &'a Walk<'_>, name: &'a str) -> impl Iterator<Item = (String, String)> + 'a {
    let text = walk.env.get(name).unwrap_or_default();
    text.split(',').map(str::trim).filter(|pair| !pair.is_empty()).filter_map(move |pair| {
        let read = pair.split_once('=').and_then(|(key, value)| {
            let value = percent_encoding::percent_decode_str(value.trim()).decode_utf8().ok()?;
            let key = key.trim();
            (!key.is_empty()).then(|| (key.to_owned(), value.into_owned()))
        });
        if read.is_none() {
            walk.warn(format!("{name} has a part that is not NAME=VALUE, which has no effect"));
        }
        read
    })
}

fn sendable(
    walk: &Walk<'_>,
    variable: &str,
    (name, value): (String, String),
) -> Option<(String, Secret)> {
    let sound =
        http::HeaderName::try_from(&name).is_ok() && http::HeaderValue::try_from(&value).is_ok();
    if !sound {
        walk.warn(format!("{variable}: `{name}` cannot be a header, and has no effect"));
    }
    sound.then(|| (name, Secret::new(value)))
}

fn first_set<'e>(env: &'e Env, names: &[&'static str]) -> Option<(&'static str, &'e str)> {
    names.iter().find_map(|name| Some((*name, env.get(name)?.trim())))
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    const FILE: &str = "[telemetry]\notlp = \"http://collector:4318/\"\n";

    fn read(text: &str, env: &[(&str, &str)]) -> (Option<Telemetry>, Vec<String>) {
        let env = Env::new(env.iter().copied());
        let config = Config::parse("clearway.toml", text, &env).unwrap();
        (config.telemetry, config.warnings)
    }

    fn read_well(text: &str, env: &[(&str, &str)]) -> Option<Telemetry> {
        let (telemetry, warnings) = read(text, env);
        assert_eq!(warnings, [""; 0]);
        telemetry
    }

    #[test]
    fn nothing_is_exported_unless_somebody_says_where() {
        assert_eq!(read_well("", &[]), None);
        assert_eq!(
            read_well("", &[("OTEL_SERVICE_NAME", "x"), ("OTEL_TRACES_SAMPLER", "always_on")]),
            None
        );
        let file = read_well(FILE, &[]).unwrap();
        assert_eq!(file.endpoint, "http://collector:4318/v1/traces");
        assert_eq!(file.resource["service.name"], "clearway");
        assert_eq!(file.sampling, Sampling { ratio: 1.0, follow_parent: true });
    }

    #[test]
    fn the_environment_goes_before_the_file() {
        let general = ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://other.example/otel");
        let traces = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://third.example/in");
        let endpoint = |env: &[_]| read_well(FILE, env).unwrap().endpoint;
        assert_eq!(endpoint(&[general]), "https://other.example/otel/v1/traces");
        assert_eq!(endpoint(&[general, traces]), "https://third.example/in");
        assert_eq!(read_well(FILE, &[("OTEL_SDK_DISABLED", "true")]), None);
        assert_eq!(read_well(FILE, &[general, ("OTEL_TRACES_EXPORTER", "none")]), None);
    }

    #[test]
    fn who_we_are_and_how_we_prove_it() {
        let telemetry = read_well(
            FILE,
            &[
                (
                    "OTEL_RESOURCE_ATTRIBUTES",
                    "service.name=other, deployment.environment.name=test%20bed",
                ),
                ("OTEL_SERVICE_NAME", "front"),
                ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20very-secret,x-a=1"),
            ],
        )
        .unwrap();
        assert!(!format!("{telemetry:?}").contains("very-secret"));
        assert_eq!(telemetry.resource["service.name"], "front");
        assert_eq!(telemetry.resource["deployment.environment.name"], "test bed");
        let headers: Vec<_> =
            telemetry.headers.iter().map(|(name, value)| (name.as_str(), value.expose())).collect();
        assert_eq!(headers, [("authorization", "Bearer very-secret"), ("x-a", "1")]);
    }

    #[test]
    fn samplers_have_their_usual_names() {
        let sampling = |name, argument| {
            let env = [("OTEL_TRACES_SAMPLER", name), ("OTEL_TRACES_SAMPLER_ARG", argument)];
            let Sampling { ratio, follow_parent } = read_well(FILE, &env).unwrap().sampling;
            (ratio, follow_parent)
        };
        assert_eq!(sampling("always_off", ""), (0.0, false));
        assert_eq!(sampling("traceidratio", "0.25"), (0.25, false));
        assert_eq!(sampling("parentbased_always_on", ""), (1.0, true));
        assert_eq!(sampling("parentbased_traceidratio", "0.5"), (0.5, true));
    }

    #[test]
    fn what_is_wrong_in_the_environment_is_said_and_stops_nothing() {
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_TRACES_SAMPLER", "xray"),
            ("OTEL_RESOURCE_ATTRIBUTES", "nonsense"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a b=1"),
        ] {
            let (telemetry, warnings) = read(FILE, &[(name, value)]);
            assert_eq!(telemetry.unwrap().endpoint, "http://collector:4318/v1/traces");
            assert!(warnings.len() == 1 && warnings[0].contains(name), "{warnings:?}");
        }
        let bad = [("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "2")];
        assert_eq!(read(FILE, &bad).1.len(), 1);
    }

    #[test]
    fn what_is_wrong_in_the_file_is_an_error() {
        for text in ["otlp = \"collector\"", "otlp = 1", "otpl = \"http://collector\""] {
            let text = format!("[telemetry]\n{text}\n");
            assert!(Config::parse("clearway.toml", &text, &Env::default()).is_err(), "{text}");
        }
    }
}
