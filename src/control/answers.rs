//! What the admin API answers: one request in, one whole response out.
//!
//! Reads the desk and never changes it. Errors have one shape, `{error: {code, message, hint}}`,
//! and say what would have been right. A request's own words never come back unescaped.

use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;

use http_body_util::Full;
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HOST, HeaderMap, HeaderValue};
use hyper::http::uri::Authority;
use hyper::{Method, Request, Response, StatusCode, Uri};
use serde::Serialize;

use super::api;
use super::desk::Desk;
use super::exposition::Exposition;
use super::standing::Standing;
use super::view;

pub type Body = Full<Bytes>;

/// A request's body may not be larger: there is nothing to send yet that is.
const BODY_BYTES_MAX: u64 = 64 * 1024;

/// Every path there is, in the order of the hint.
const PATHS: [&str; 8] = [
    "/livez",
    "/readyz",
    "/healthz",
    "/metrics",
    "/api/v1/status",
    "/api/v1/listeners",
    "/api/v1/pools",
    "/api/v1/servers",
];

/// Through which door a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    Unix,
    Tcp,
}

/// Answers; never fails, never waits.
pub fn answer(request: &Request<Incoming>, door: Door, desk: &Arc<Desk>) -> Response<Body> {
    let mut response = match refusal(request.uri(), request.headers(), door) {
        Some(refusal) => refusal,
        None if is_too_large(request) => too_large(),
        None => route(request.method(), request.uri().path(), request.headers(), desk),
    };
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if !request.body().is_end_stream() {
        // Nobody reads the body, so nobody can tell where the next request would begin.
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

fn route(method: &Method, path: &str, headers: &HeaderMap, desk: &Arc<Desk>) -> Response<Body> {
    if !PATHS.contains(&path) {
        let hint = format!("what there is: {}", PATHS.join(" "));
        return error(StatusCode::NOT_FOUND, "not_found", "there is nothing at this path", &hint);
    }
    if method != Method::GET && method != Method::HEAD {
        let message = "this path can only be read";
        let mut refused = error(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message, "use GET");
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    match path {
        "/livez" => text(StatusCode::OK, "ok"),
        "/readyz" if desk.is_draining() => text(StatusCode::SERVICE_UNAVAILABLE, "draining"),
        "/readyz" => text(StatusCode::OK, "ok"),
        "/healthz" => health(desk),
        "/metrics" => metrics(headers, desk),
        "/api/v1/status" => json(StatusCode::OK, &view::status(desk)),
        "/api/v1/listeners" => json(StatusCode::OK, &view::listeners(desk)),
        "/api/v1/pools" => json(StatusCode::OK, &view::pools(desk)),
        _ => json(StatusCode::OK, &view::servers(desk)),
    }
}

/// The worst standing of any pool, in a word.
fn health(desk: &Desk) -> Response<Body> {
    let standings: Vec<_> = desk.snapshot().pools.values().map(|pool| Standing::of(pool)).collect();
    if standings.contains(&Standing::Empty) {
        text(StatusCode::SERVICE_UNAVAILABLE, "empty")
    } else if standings.contains(&Standing::Degraded) {
        text(StatusCode::OK, "degraded")
    } else {
        text(StatusCode::OK, "ok")
    }
}

fn metrics(headers: &HeaderMap, desk: &Arc<Desk>) -> Response<Body> {
    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let exposition = Exposition::accepted(accept);
    match exposition.write(desk) {
        Ok(page) => response(StatusCode::OK, exposition.content_type(), page),
        Err(_) => {
            error(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the metrics could not be written", "")
        }
    }
}

/// On the open door, the answer for a request that a web page on another site may have caused:
/// a name that its owner has pointed at us (DNS rebinding) shows in `Host`; an address cannot be
/// pointed anywhere.
fn refusal(uri: &Uri, headers: &HeaderMap, door: Door) -> Option<Response<Body>> {
    let mut hosts = headers.get_all(HOST).iter();
    let (host, more) = (hosts.next(), hosts.next());
    if more.is_some() {
        let message = "more than one Host header";
        return Some(error(StatusCode::BAD_REQUEST, "bad_request", message, "send one"));
    }
    let host = host.map(|host| host.to_str().unwrap_or_default());
    let named = [uri.authority().map(Authority::as_str), host];
    if door == Door::Unix || named.into_iter().flatten().all(is_address) {
        return None;
    }
    let hint = "address this port by IP address or as `localhost`";
    Some(error(StatusCode::FORBIDDEN, "host_not_allowed", "the Host header names another host", hint))
}

/// `localhost`, `127.0.0.1`, `[::1]`, each with or without a port.
fn is_address(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() => name,
        _ => host,
    };
    let bare = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
}

/// Known too large, or of a size that only reading would tell: no request needs that.
fn is_too_large(request: &Request<Incoming>) -> bool {
    let size = request.body().size_hint();
    size.lower() > BODY_BYTES_MAX || size.upper().is_none()
}

fn too_large() -> Response<Body> {
    let hint = "send at most 64 KiB, and say how much in Content-Length";
    error(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", "the body is too large", hint)
}

fn error(status: StatusCode, code: &str, message: &str, hint: &str) -> Response<Body> {
    let trouble = api::Trouble { code: code.into(), message: message.into(), hint: hint.into() };
    json(status, &api::Failure { error: trouble })
}

fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    // Structs of strings and numbers always have a JSON form.
    let mut body = serde_json::to_string_pretty(value).unwrap_or_default();
    body.push('\n');
    response(status, "application/json", body)
}

fn text(status: StatusCode, word: &str) -> Response<Body> {
    let mut body = String::new();
    let _ = writeln!(body, "{word}"); // a string takes everything
    response(status, "text/plain; charset=utf-8", body)
}

fn response(status: StatusCode, content_type: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
