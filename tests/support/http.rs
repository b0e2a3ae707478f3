//! The smallest HTTP client that can read health and metrics, and the reader of metrics.
//!
//! Own code, so that what the daemon serves is judged by something that shares no code with it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::PATIENCE;

/// An answer, read to its end.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    /// The lines before the body, as sent.
    pub head: String,
    pub body: String,
}

/// One `GET` on a connection of its own.
pub fn get(address: SocketAddr, path: &str) -> io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, format!("not an HTTP answer: {answer:?}"));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(malformed)?;
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).ok_or_else(malformed)?;
    Ok(Answer { status, head: head.into(), body: body.into() })
}

/// The sum of all samples of `name` whose labels include `labels`, in Prometheus' text format.
pub fn metric(text: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples.filter_map(|line| sample(line, name, labels)).sum()
}

/// The value of this line, if it is a sample that was asked for. Label values hold no `,` or `"`
/// in the tests' configurations, which keeps this simple.
fn sample(line: &str, name: &str, wanted: &[(&str, &str)]) -> Option<f64> {
    let rest = line.strip_prefix(name)?;
    let (labels, value) = match rest.strip_prefix('{') {
        Some(rest) => rest.split_once('}')?,
        None => ("", rest.strip_prefix(' ')?),
    };
    let has = |(key, value): &(&str, &str)| {
        let pair = format!("{key}=\"{value}\"");
        labels.split(',').any(|label| label == pair)
    };
    wanted.iter().all(has).then(|| value.split_whitespace().next()?.parse().ok()).flatten()
}
