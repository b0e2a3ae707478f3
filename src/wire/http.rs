//! HTTP/1.x, as much as a health check needs: one request, and its answer as it comes in.
//!
//! Keeps a bounded head and a bounded body, and knows where the answer ends (a length, chunks, or
//! the end of the connection: RFC 9112, section 6). Follows no redirect and decodes no content.

/// One line of the head. Servers allow 8 KiB for a request's lines; answers come shorter.
const LINE_MAX: usize = 8 * 1024;
/// The whole head; nginx and Apache stop at as much.
const HEAD_MAX: usize = 32 * 1024;
/// The part of the body that is kept, and so searched. Health pages are far shorter.
pub const BODY_MAX: usize = 64 * 1024;

/// The request for one answer, after which the server closes the connection.
pub fn request(method: &str, path: &str, host: &str) -> Vec<u8> {
    let agent = concat!("tidegate/", env!("CARGO_PKG_VERSION"), " (health check)");
    let lines = format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {agent}\r\nAccept: */*\r\n\
         Connection: close\r\n\r\n"
    );
    lines.into_bytes()
}

/// One answer, as far as it is known.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    headers: Vec<(String, String)>,
    /// What is kept of it: [`BODY_MAX`] bytes.
    pub body: Vec<u8>,
    is_to_head: bool,
    part: Part,
    /// The line so far, in the parts that consist of lines.
    line: Vec<u8>,
    head_bytes: usize,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Status,
    Headers,
    /// A body of so many bytes more.
    Exact(u64),
    /// A body that ends with the connection.
    Rest,
    ChunkSize,
    Chunk(u64),
    ChunkEnd,
    Trailers,
    End,
}

impl Answer {
    /// Nothing yet of the answer to a request of that method.
    pub fn to(method: &str) -> Self {
        Answer {
            status: 0,
            headers: Vec::new(),
            body: Vec::new(),
            is_to_head: method == "HEAD",
            part: Part::Status,
            line: Vec::new(),
            head_bytes: 0,
        }
    }

    /// Status and headers are known.
    pub fn has_head(&self) -> bool {
        !matches!(self.part, Part::Status | Part::Headers)
    }

    /// It has ended, or as much of its body is known as is kept.
    pub fn is_whole(&self) -> bool {
        self.part == Part::End || self.body.len() >= BODY_MAX
    }

    /// The values of that header, in order.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let of_name = move |(key, _): &&(String, String)| key.eq_ignore_ascii_case(name);
        self.headers.iter().filter(of_name).map(|(_, value)| value.as_str())
    }

    /// Takes the next bytes. What follows the answer is left aside.
    ///
    /// # Errors
    /// What is wrong, in one clause.
    pub fn on_bytes(&mut self, mut bytes: &[u8]) -> Result<(), &'static str> {
        while !bytes.is_empty() && !self.is_whole() {
            let taken = match self.part {
                Part::Exact(left) | Part::Chunk(left) => self.keep(bytes, left),
                Part::Rest => self.keep(bytes, u64::MAX),
                _ => self.on_line_bytes(bytes)?,
            };
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    /// The connection has ended.
    ///
    /// # Errors
    /// The answer was not complete.
    pub fn on_end(&mut self) -> Result<(), &'static str> {
        match self.part {
            Part::End => {}
            Part::Rest => self.part = Part::End,
            Part::Status | Part::Headers => return Err("closed the connection before it had answered"),
            _ => return Err("closed the connection in the middle of its answer"),
        }
        Ok(())
    }

    /// Takes bytes of the body, `left` at the most; says how many.
    fn keep(&mut self, bytes: &[u8], left: u64) -> usize {
        let taken = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let room = BODY_MAX - self.body.len();
        self.body.extend_from_slice(&bytes[..taken.min(room)]);
        let left = left.saturating_sub(taken as u64);
        self.part = match self.part {
            Part::Exact(_) if left == 0 => Part::End,
            Part::Exact(_) => Part::Exact(left),
            Part::Chunk(_) if left == 0 => Part::ChunkEnd,
            Part::Chunk(_) => Part::Chunk(left),
            part => part,
        };
        taken
    }

    /// Takes bytes up to the end of the line; says how many.
    fn on_line_bytes(&mut self, bytes: &[u8]) -> Result<usize, &'static str> {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(bytes.len(), |end| end + 1);
        self.head_bytes += taken;
        self.line.extend_from_slice(&bytes[..taken]);
        // A server that speaks another protocol may never send a line.
        let start = &self.line[..self.line.len().min(5)];
        if self.part == Part::Status && !b"HTTP/".starts_with(start) {
            return Err("speaks no HTTP");
        }
        if self.line.len() > LINE_MAX || self.head_bytes > HEAD_MAX {
            return Err("sent an HTTP head without end");
        }
        if end.is_some() {
            let line = std::mem::take(&mut self.line);
            let line = line.strip_suffix(b"\n").unwrap_or(&line);
            self.on_line(line.strip_suffix(b"\r").unwrap_or(line))?;
        }
        Ok(taken)
    }

    fn on_line(&mut self, line: &[u8]) -> Result<(), &'static str> {
        self.part = match self.part {
            Part::Status => {
                self.status = status(line).ok_or("speaks no HTTP/1.x")?;
                Part::Headers
            }
            Part::Headers if line.is_empty() => self.body_part()?,
            Part::Headers => {
                self.headers.push(header(line).ok_or("sent a malformed HTTP header")?);
                Part::Headers
            }
            Part::ChunkSize => match chunk_size(line).ok_or("sent a malformed chunk")? {
                0 => Part::Trailers,
                size => {
                    self.head_bytes = 0; // bounds the lines between chunks, not their sum
                    Part::Chunk(size)
                }
            },
            Part::ChunkEnd if line.is_empty() => Part::ChunkSize,
            Part::ChunkEnd => return Err("sent a malformed chunk"),
            Part::Trailers if line.is_empty() => Part::End,
            part => part,
        };
        Ok(())
    }

    /// What follows the head (RFC 9112, section 6.3).
    fn body_part(&mut self) -> Result<Part, &'static str> {
        if (100..200).contains(&self.status) && self.status != 101 {
            self.headers.clear(); // an interim answer: the real one follows
            return Ok(Part::Status);
        }
        self.head_bytes = 0;
        if self.is_to_head || matches!(self.status, 101 | 204 | 304) {
            return Ok(Part::End);
        }
        let is_chunked = |value: &str| value.trim_end().to_ascii_lowercase().ends_with("chunked");
        if self.values("transfer-encoding").last().is_some_and(is_chunked) {
            return Ok(Part::ChunkSize);
        }
        let length = self.values("content-length").next().map(str::parse);
        match length {
            None => Ok(Part::Rest),
            Some(Ok(0)) => Ok(Part::End),
            Some(Ok(length)) => Ok(Part::Exact(length)),
            Some(Err(_)) => Err("sent a malformed Content-Length"),
        }
    }
}

/// `HTTP/1.1 200 OK`; the reason may be missing.
fn status(line: &[u8]) -> Option<u16> {
    let text = std::str::from_utf8(line.get(..12)?).ok()?;
    let (version, status) = text.split_once(' ')?;
    let is_closed = line.get(12).is_none_or(|byte| *byte == b' ');
    let is_known = matches!(version, "HTTP/1.0" | "HTTP/1.1") && is_closed;
    status.parse().ok().filter(|status| is_known && (100..1000).contains(status))
}

fn header(line: &[u8]) -> Option<(String, String)> {
    let text = String::from_utf8_lossy(line);
    let (name, value) = text.split_once(':')?;
    let is_name = !name.is_empty() && !name.contains([' ', '\t']);
    is_name.then(|| (name.to_owned(), value.trim().to_owned()))
}

/// Hexadecimal, before whatever extension.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(line).ok()?;
    let digits = text.split(';').next()?.trim();
    let is_plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_plain.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The answer after these pieces and the end of the connection.
    fn read<'a>(method: &str, pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<Answer, &'static str> {
        let mut answer = Answer::to(method);
        for piece in pieces {
            answer.on_bytes(piece)?;
        }
        if !answer.is_whole() {
            answer.on_end()?;
        }
        Ok(answer)
    }

    fn body(text: &str) -> Result<String, &'static str> {
        read("GET", [text.as_bytes()]).map(|answer| String::from_utf8(answer.body).expect("text"))
    }

    #[test]
    fn a_request_is_exactly_this() {
        let request = String::from_utf8(request("GET", "/healthz", "a.test")).expect("text");
        assert!(request.starts_with("GET /healthz HTTP/1.1\r\nHost: a.test\r\nUser-Agent: tidegate/"));
        assert!(request.ends_with("\r\nConnection: close\r\n\r\n"));
    }

    #[test]
    fn a_body_ends_where_its_head_says() {
        assert_eq!(body("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok, and more").as_deref(), Ok("ok"));
        assert_eq!(body("HTTP/1.0 200 OK\r\n\r\nuntil the end").as_deref(), Ok("until the end"));
        assert_eq!(body("HTTP/1.1 200\nContent-Length: 0\n\n").as_deref(), Ok(""));
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n";
        let chunks = "3\r\nabc\r\n0A;x=y\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n";
        assert_eq!(body(&format!("{chunked}{chunks}")).as_deref(), Ok("abc0123456789"));
        assert!(body(&format!("{chunked}3\r\nab")).unwrap_err().contains("middle"));
        assert!(body("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok").unwrap_err().contains("middle"));
    }

    #[test]
    fn an_interim_answer_is_passed_over_and_a_head_has_no_body() {
        let answer =
            read("GET", [&b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 204 No\r\n\r\n"[..]]);
        let answer = answer.expect("an answer");
        assert_eq!((answer.status, answer.values("link").count()), (204, 0));
        let answer = read("HEAD", [&b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Role: primary\r\n\r\n"[..]]);
        let answer = answer.expect("an answer");
        assert_eq!(answer.values("x-role").collect::<Vec<_>>(), ["primary"]);
    }

    #[test]
    fn what_is_no_http_says_so_at_once() {
        for said in ["SSH-2.0-OpenSSH_9.2\r\n", "\u{16}\u{3}", "H2", "HTTP/2 200\r\n\r\n", "HTTP/1.1 20\r\n"]
        {
            assert!(read("GET", [said.as_bytes()]).unwrap_err().starts_with("speaks no HTTP"), "{said:?}");
        }
        assert!(read("GET", [&b"HTTP/1.1 200 OK\r\nno header\r\n"[..]]).unwrap_err().contains("header"));
        assert!(read("GET", []).unwrap_err().contains("before"));
    }

    #[test]
    fn an_endless_head_and_an_endless_body_are_bounded() {
        let mut answer = Answer::to("GET");
        let line = [b"HTTP/1.1 200 ".as_slice(), &[b'x'; LINE_MAX]].concat();
        assert!(answer.on_bytes(&line).is_err());
        let mut answer = Answer::to("GET");
        answer.on_bytes(b"HTTP/1.1 200 OK\r\n").expect("a status");
        assert!((0..HEAD_MAX).any(|_| answer.on_bytes(b"X-Header: value\r\n").is_err()));
        let mut answer = Answer::to("GET");
        answer.on_bytes(b"HTTP/1.1 200 OK\r\n\r\n").expect("a head");
        answer.on_bytes(&vec![0; 10 * 1024 * 1024]).expect("no more than is kept");
        assert!(answer.is_whole() && answer.body.len() == BODY_MAX);
    }

    /// Bytes that are an answer, nearly one, or anything.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let part = prop_oneof![
            Just(b"HTTP/1.1 200 OK\r\n".to_vec()),
            Just(b"HTTP/1.1 100 Continue\r\n\r\n".to_vec()),
            Just(b"Transfer-Encoding: chunked\r\n".to_vec()),
            Just(b"Content-Length: 7\r\n".to_vec()),
            Just(b"\r\n".to_vec()),
            Just(b"5\r\nhello\r\n".to_vec()),
            Just(b"0\r\n\r\n".to_vec()),
            prop::collection::vec(any::<u8>(), 0..20),
        ];
        prop::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn however_it_is_split_the_answer_is_the_same(
            bytes in bytes(),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]);
            prop_assert_eq!(read("GET", pieces), read("GET", [bytes.as_slice()]));
            prop_assert_eq!(read("GET", bytes.chunks(1)), read("GET", [bytes.as_slice()]));
        }
    }
}
