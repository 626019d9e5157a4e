//! Steps that go outside: `http` and `tool`.

use clearway_engine::Effect;
use http::{HeaderName, Method, Uri};

use super::{Drafting, StepKind};
use crate::config::walk::{At, Table, Value};
use crate::workflow::request::{HttpBody, HttpRequest};
use crate::workflow::shape::Shape;

const EFFECTS: [(&str, Effect); 3] =
    [("read", Effect::Read), ("idempotent", Effect::Idempotent), ("write", Effect::Write)];

/// JSON with templates in it.
pub(super) fn shape(value: &Value<'_>, name: &str) -> Option<Shape> {
    let json = value.json()?;
    match Shape::compile(name, &json) {
        Ok(shape) => Some(shape),
        Err(why) => {
            value.problem(format!("a template in this is broken: {why}"), "here", "");
            None
        }
    }
}

impl<'a> Drafting<'_, '_, 'a> {
    /// `request = { method, url, headers, json | body }`, `effect`, `key`, `accept`, `max_bytes`.
    pub(super) fn http(&mut self, name: &str, table: &Table<'a>) -> Option<StepKind> {
        let named = |key: &str| format!("{name}.{key}");
        let effect = table.get("effect").and_then(|value| value.one_of(&EFFECTS));
        let key = table.get("key");
        let key = key.and_then(|value| self.template(&value, &named("key")));
        let accept = table.get("accept").map(|value| value.list()).unwrap_or_default();
        let accept = accept.iter().filter_map(|value| value.count(100..=599));
        let accept = accept.filter_map(|status| u16::try_from(status).ok()).collect();
        let max_bytes = table.get("max_bytes").and_then(|value| value.integer(1..=64 << 20));
        let why = "request = { url = \"https://api.example.com/v1/x\" }";
        let place = table.require("request", why)?;
        self.places.insert((name.to_owned(), "request"), place.clone());
        let request = place.table()?;
        let methods = [
            ("GET", Method::GET),
            ("HEAD", Method::HEAD),
            ("POST", Method::POST),
            ("PUT", Method::PUT),
            ("PATCH", Method::PATCH),
            ("DELETE", Method::DELETE),
        ];
        let method = request.get("method").and_then(|value| {
            let names: Vec<(&'static str, usize)> =
                methods.iter().enumerate().map(|(at, (name, _))| (*name, at)).collect();
            value.one_of(&names).map(|at| methods[at].1.clone())
        });
        let address = request.require("url", why);
        let url = address.as_ref().and_then(|value| self.template(value, &named("request.url")));
        if let Some(value) = &address {
            self.host(value);
        }
        let headers = request.get("headers").map(|value| value.entries()).unwrap_or_default();
        let headers = headers
            .into_iter()
            .filter_map(|(header, value)| {
                if HeaderName::try_from(&header).is_err() {
                    value.problem(format!("`{header}` is no name of a header"), "here", "");
                    return None;
                }
                let place = named(&format!("request.headers.{header}"));
                Some((header, self.template(&value, &place)?))
            })
            .collect();
        let json = request.get("json");
        let body = request.get("body");
        if let (Some(_), Some(body)) = (&json, &body) {
            body.problem("a request has `json` or `body`, not both", "here", "leave one out");
        }
        let body = match (json, body) {
            (Some(json), _) => Some(HttpBody::Json(shape(&json, &named("request.json"))?)),
            (None, Some(body)) => {
                Some(HttpBody::Text(self.template(&body, &named("request.body"))?))
            }
            (None, None) => None,
        };
        request.finish();
        let method = method.unwrap_or(if body.is_some() { Method::POST } else { Method::GET });
        // Who only asks reads; with a key the other side recognises repetitions; the rest writes.
        let usual = match (&method, &key) {
            (&Method::GET | &Method::HEAD, _) => Effect::Read,
            (_, Some(_)) => Effect::Idempotent,
            (_, None) => Effect::Write,
        };
        Some(StepKind::Http(Box::new(HttpRequest {
            method,
            url: url?,
            headers,
            body,
            effect: effect.unwrap_or(usual),
            key,
            accept,
            max_bytes: max_bytes.and_then(|bytes| usize::try_from(bytes).ok()),
        })))
    }

    /// A host that no template decides about is looked up now.
    fn host(&mut self, value: &Value<'a>) {
        let Some(text) = value.text() else { return };
        let fixed = text.split("{{").next().unwrap_or_default();
        let Some((scheme, rest)) = fixed.split_once("://") else {
            if !text.contains("{{") {
                let example = "such as https://api.example.com/v1/x";
                value.problem(format!("`{text}` is no address"), "here", example);
            }
            return;
        };
        if !matches!(scheme, "http" | "https") {
            value.problem(format!("`{scheme}` is not http or https"), "here", "");
            return;
        }
        let whole = fixed.len() == text.len() || rest.contains('/');
        let address = format!("{scheme}://{}", rest.split('/').next().unwrap_or_default());
        let host = address.parse::<Uri>().ok().and_then(|uri| uri.host().map(ToOwned::to_owned));
        match host {
            Some(host) if whole => {
                self.uses.push(("host", At { value: host, span: value.span() }));
            }
            None if whole => value.problem(format!("`{text}` has no host"), "here", ""),
            Some(_) | None => {}
        }
    }

    /// `tool = "SERVER/TOOL"`, `args`, `effect`.
    pub(super) fn tool(&mut self, name: &str, table: &Table<'a>) -> Option<StepKind> {
        let place = table.require("tool", "say which: tool = \"crm/find_customer\"")?;
        let written = place.name()?;
        let text = written.value.trim_start_matches("mcp:");
        let Some((server, tool)) = text.split_once('/').filter(|(_, tool)| !tool.is_empty()) else {
            place.problem(
                format!("`{}` names no tool of a server", written.value),
                "here",
                "write SERVER/TOOL, such as crm/find_customer",
            );
            return None;
        };
        self.uses.push(("mcp", At { value: server.to_owned(), span: written.span }));
        let args = table.get("args");
        if let Some(value) = &args {
            self.places.insert((name.to_owned(), "args"), value.clone());
        }
        let args = match args {
            Some(value) => shape(&value, &format!("{name}.args"))?,
            None => Shape::Object(Vec::new()),
        };
        let effect = table.get("effect").and_then(|value| value.one_of(&EFFECTS));
        Some(StepKind::Tool { server: server.to_owned(), tool: tool.to_owned(), args, effect })
    }
}
