//! How a connection ended: one word of a frozen list, and who, when and how.
//!
//! Pure values. The words are the product's interface: the access log, the metric
//! label, the API and the tests use them alike, so a word is added here and never
//! renamed. What happened is decided in `data/`; here it only gets its name.

use std::borrow::Cow;

/// Declares an enum whose variants each carry the one word that users see.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$note:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(usize)]
        pub enum $name { $($(#[$note])* $variant),+ }

        impl $name {
            /// Every variant, in order of declaration; a variant's place here is its [`Self::index`].
            pub const ALL: &'static [$name] = &[$($name::$variant),+];

            /// The word that users see.
            pub const fn word(self) -> &'static str {
                match self { $($name::$variant => $word),+ }
            }

            /// A dense number for tables of counters: `0..ALL.len()`.
            pub const fn index(self) -> usize {
                self as usize
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.word())
            }
        }
    };
}
pub(crate) use words;

words! {
    /// Which side ended the connection.
    By { Client = "client", Server = "server", Proxy = "proxy", Admin = "admin" }
}

words! {
    /// The step of the connection's life in which it ended.
    Phase { Accept = "accept", Hello = "hello", Route = "route", Queue = "queue", Connect = "connect", Data = "data", Drain = "drain" }
}

words! {
    /// The manner of the end.
    How { Fin = "fin", Rst = "rst", Timeout = "timeout", Error = "error", Policy = "policy" }
}

words! {
    /// Why the connection ended: exactly one word for each connection.
    Reason {
        /// Both sides said all they had to say.
        Done = "done",
        /// The client sent a reset.
        ClientReset = "client_reset",
        /// The client stopped answering: keepalive or unacknowledged data ran out.
        ClientVanished = "client_vanished",
        /// The server sent a reset.
        ServerReset = "server_reset",
        /// The server stopped answering: keepalive or unacknowledged data ran out.
        ServerVanished = "server_vanished",
        /// The only server that was tried answered with a reset.
        ServerRefused = "server_refused",
        /// There was no way to the only server that was tried.
        ServerUnreachable = "server_unreachable",
        /// The only server that was tried gave no answer within `connect_timeout`.
        ConnectTimeout = "connect_timeout",
        /// Both directions were silent for `idle_timeout`.
        IdleTimeout = "idle_timeout",
        /// The client had not said a byte when `first_byte_timeout` had passed.
        HelloTimeout = "hello_timeout",
        /// One side had ended and the other was silent for `half_close_timeout`.
        HalfCloseTimeout = "half_close_timeout",
        /// The pool has no server that may take a connection.
        NoHealthyServer = "no_healthy_server",
        /// More than one server was tried, and none took the connection.
        AllAttemptsFailed = "all_attempts_failed",
        /// Its server went down, and `on_server_down` says to close.
        ServerMarkedDown = "server_marked_down",
        /// Its server had been down for as long as `on_server_down` lets it drain.
        ServerDrained = "server_drained",
        /// The listener or the process is at `max_connections`, and `when_full` says refuse.
        ListenerLimit = "listener_limit",
        /// The listener's `allow` and `deny` keep the client out, or a route rejects it.
        AclDeny = "acl_deny",
        /// The client's source is at `max_connections_per_source`.
        SourceLimit = "source_limit",
        /// More clients come than `connection_rate` or `connection_rate_per_source` lets in.
        RateLimit = "rate_limit",
        /// No route takes the client, and its listener has no pool for whoever is left.
        NoRoute = "no_route",
        /// Every healthy server is at its `max_connections`.
        ServerLimit = "server_limit",
        /// As many clients as `queue.max` waited for a server already.
        QueueFull = "queue_full",
        /// No server took the client within `queue.timeout`.
        QueueTimeout = "queue_timeout",
        /// Still open when `drain_timeout` had passed, or when a second signal came.
        DrainDeadline = "drain_deadline",
        /// The process has no descriptor left for the server's side.
        FdExhausted = "fd_exhausted",
        /// No local port is left towards the server.
        PortExhausted = "port_exhausted",
        /// An error that Tidegate does not expect; `close.errno` and `close.detail` say which.
        Internal = "internal",
    }
}

/// The end of a connection, as every view of it tells the story.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Close {
    pub by: By,
    pub phase: Phase,
    pub how: How,
    pub reason: Reason,
    /// The system's error number, where one was the cause.
    pub errno: Option<i32>,
    /// One sentence that an on-call person can paste.
    pub detail: Cow<'static, str>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_word_of_its_own() {
        let mut words: Vec<_> = Reason::ALL.iter().map(|reason| reason.word()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Reason::ALL.len());
    }

    #[test]
    fn an_index_is_the_place_in_the_list() {
        for (place, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), place);
        }
    }
}
