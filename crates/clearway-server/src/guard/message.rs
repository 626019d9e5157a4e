//! What HTTP asks of a request's head beyond its syntax (RFC 9112 3.2 and 6.1, RFC 9110 8.4): whose it
//! is, and how its body is framed and coded. hyper looks at none of it.
//!
//! **Invariant:** nobody in front of this server can have understood another host or another body
//! than it does.

use clearway_core::Code;
use http::header::{ACCEPT_ENCODING, CONNECTION, CONTENT_ENCODING, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Version};
use http_body::Body;

use crate::Problem;
use crate::extract::shown;

/// Checks host and framing, and makes `Host` what the request is for.
///
/// # Errors
/// `invalid_request`; the connection closes, because its bytes may be read in two ways.
pub(crate) fn settle<B>(request: &mut Request<B>) -> Result<(), Problem> {
    check_hosts(request.version(), request.headers())?;
    check_framing(request.headers())?;
    // The address's own host counts, and not what stands beside it.
    if let Some(authority) = request.uri().authority() {
        let host = match authority.port() {
            Some(port) => format!("{}:{port}", authority.host()),
            None => authority.host().to_owned(),
        };
        let host = HeaderValue::try_from(host)
            .map_err(|_| refusal("the address of the request has no valid host"))?;
        request.headers_mut().insert(HOST, host);
    }
    Ok(())
}

fn check_hosts(version: Version, headers: &HeaderMap) -> Result<(), Problem> {
    match headers.get_all(HOST).iter().count() {
        0 if version >= Version::HTTP_11 => {
            Err(refusal("an HTTP/1.1 request needs a Host header, and this has none"))
        }
        0 | 1 => Ok(()),
        hosts => Err(refusal(format!("a request has one Host header, and this has {hosts}"))),
    }
}

/// `chunked`, once and alone, is what this server understands.
fn check_framing(headers: &HeaderMap) -> Result<(), Problem> {
    let codings = list(headers, &TRANSFER_ENCODING);
    match codings.iter().find(|coding| *coding != "chunked") {
        Some(other) => {
            let text = format!(
                "Transfer-Encoding `{}` is not understood here; only `chunked` is",
                shown(other)
            );
            Err(refusal(text).status(StatusCode::NOT_IMPLEMENTED))
        }
        None if codings.len() > 1 => Err(refusal("Transfer-Encoding names `chunked` twice")),
        None => Ok(()),
    }
}

/// Bodies are read as they are.
///
/// # Errors
/// `invalid_request` with 415 for a compressed one.
pub(crate) fn check_coding<B: Body>(request: &Request<B>) -> Result<(), Problem> {
    if request.body().is_end_stream() {
        return Ok(());
    }
    let codings = list(request.headers(), &CONTENT_ENCODING);
    match codings.iter().find(|coding| *coding != "identity") {
        None => Ok(()),
        Some(coding) => {
            let text = format!(
                "the body has the Content-Encoding `{}`, and this server reads only bodies without one",
                shown(coding)
            );
            Err(Problem::new(Code::InvalidRequest, text)
                .status(StatusCode::UNSUPPORTED_MEDIA_TYPE)
                .header(ACCEPT_ENCODING, HeaderValue::from_static("identity"))
                .hint("Send the body uncompressed, without Content-Encoding."))
        }
    }
}

/// The members of a list over all its lines, in small letters.
fn list(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let lines = headers.get_all(name).into_iter();
    let lines = lines.map(|line| String::from_utf8_lossy(line.as_bytes()).to_ascii_lowercase());
    let members = |line: String| {
        let members = line.split(',').map(str::trim).filter(|member| !member.is_empty());
        members.map(ToOwned::to_owned).collect::<Vec<_>>()
    };
    lines.flat_map(members).collect()
}

fn refusal(text: impl Into<String>) -> Problem {
    Problem::new(Code::InvalidRequest, text).header(CONNECTION, HeaderValue::from_static("close"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(target: &str, version: Version, headers: &[(&str, &str)]) -> Request<String> {
        let request = Request::builder().uri(target).version(version);
        let request =
            headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        request.body("{}".to_owned()).unwrap()
    }

    #[test]
    fn a_request_is_for_one_host() {
        let settled = |target: &str, version, headers: &[(&str, &str)]| {
            let mut request = request(target, version, headers);
            settle(&mut request).ok()?;
            Some(request.headers().get(HOST).map(|host| host.to_str().unwrap().to_owned()))
        };
        let host = |text: &str| Some(Some(text.to_owned()));
        let (old, new) = (Version::HTTP_10, Version::HTTP_11);
        assert_eq!(settled("/runs", new, &[("host", "a:1")]), host("a:1"));
        assert_eq!(settled("/runs", new, &[]), None);
        assert_eq!(settled("/runs", old, &[]), Some(None));
        assert_eq!(settled("/runs", new, &[("host", "a"), ("host", "a")]), None);
        assert_eq!(settled("/runs", old, &[("host", "a"), ("host", "b")]), None);
        assert_eq!(settled("http://b:2/runs", new, &[("host", "a")]), host("b:2"));
        assert_eq!(settled("http://a@b/runs", new, &[("host", "a")]), host("b"));
        assert_eq!(settled("http://[::1]:2/runs", new, &[("host", "a")]), host("[::1]:2"));
        assert_eq!(settled("http://b/runs", new, &[]), None, "still required beside it");
    }

    #[test]
    fn bodies_are_framed_in_one_way_and_not_coded() {
        let status = |headers: &[(&str, &str)]| {
            let mut all = vec![("host", "a")];
            all.extend(headers);
            let mut request = request("/", Version::HTTP_11, &all);
            let checked = settle(&mut request).and_then(|()| check_coding(&request));
            checked.err().map(|problem| problem.status_code().as_u16())
        };
        let framing = "transfer-encoding";
        assert_eq!(status(&[(framing, "Chunked")]), None);
        assert_eq!(status(&[(framing, "gzip, chunked")]), Some(501));
        assert_eq!(status(&[(framing, "gzip"), (framing, "chunked")]), Some(501));
        assert_eq!(status(&[(framing, "chunked, chunked")]), Some(400));
        assert_eq!(status(&[(framing, "chunked"), (framing, "chunked")]), Some(400));
        let coding = "content-encoding";
        assert_eq!(status(&[(coding, "Identity")]), None);
        assert_eq!(status(&[(coding, "gzip")]), Some(415));
        assert_eq!(status(&[(coding, "identity, br")]), Some(415));
        let empty = Request::builder().header(coding, "gzip").body(String::new()).unwrap();
        assert!(check_coding(&empty).is_ok(), "there is nothing that would be coded");
    }
}
