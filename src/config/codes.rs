//! The name of each mistake: stable, searchable, explained.
//!
//! A code is never renamed and never used again for something else. `E00xx` is about the file
//! and its syntax, `E01xx` about its meaning; `W0xxx` does not keep Tidegate from starting.

/// Declares the table: the code that users see, and one paragraph that explains it.
macro_rules! codes {
    ($($variant:ident = $code:literal, $about:literal;)+) => {
        /// What kind of mistake it is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code { $($variant),+ }

        impl Code {
            /// The whole table, in order.
            pub const ALL: &'static [Code] = &[$(Code::$variant),+];

            /// The code that users see, such as `E0107`.
            pub const fn text(self) -> &'static str {
                match self { $(Code::$variant => $code),+ }
            }

            /// One paragraph for who looks the code up.
            pub const fn about(self) -> &'static str {
                match self { $(Code::$variant => $about),+ }
            }
        }
    };
}

codes! {
    NotFound = "E0001", "The configuration file does not exist. The path comes from the command line, \
        from TIDEGATE_CONFIG, or is /etc/tidegate/tidegate.toml.";
    NotPermitted = "E0002", "The configuration file exists, but this user may not read it. The file and each \
        folder above it must be readable for the user that Tidegate runs as.";
    NotAFile = "E0003", "The path leads to something that is no regular file, such as a directory, a FIFO or a \
        device. Tidegate reads its configuration again at each reload, so it must be a file.";
    TooLarge = "E0004", "The configuration file is larger than 4 MiB. No real configuration comes near; the \
        limit keeps a wrong path from filling the memory.";
    NotUtf8 = "E0005", "The configuration file holds bytes that are not UTF-8, which TOML requires. An editor \
        that saves as Latin-1 or UTF-16 is the usual cause.";
    Unreadable = "E0006", "The system could not read the configuration file; the message holds its reason.";
    Empty = "E0007", "The configuration file says nothing. Tidegate needs one listener and one pool at least; \
        a file that another program is about to write looks like this, too.";
    Syntax = "E0010", "The text is not TOML. The usual causes: a text value without quotes, a bracket or a quote \
        that is never closed, a key without a value.";
    Duplicate = "E0011", "A key or a table is written twice. TOML allows each key once and each `[table]` once, \
        so that no value silently hides another.";
    UnknownKey = "E0101", "Tidegate knows no such key in this table. Unknown keys are mistakes, not ignored, \
        because a misspelt limit or timeout would otherwise never take effect.";
    WrongType = "E0102", "The value has another type than the key takes, such as a number in quotes or a single \
        text where a list belongs.";
    UnknownWord = "E0103", "The key takes one of a few words, and this is none of them.";
    BadQuantity = "E0104", "A duration is one whole number and one unit in quotes: \"250ms\", \"2s\", \"5m\", \
        \"1h\", \"7d\". A share is a number and a percent sign in quotes: \"10%\". A rate \
        is a number and a unit of time in quotes: \"1000/s\", \"10/m\", \"100/h\".";
    OutOfRange = "E0105", "The value is of the right type, but smaller or larger than the key allows.";
    UnknownPool = "E0106", "A listener, a route, a canary, or the `fallback` of a pool names a pool that the file does not define.";
    NoWeight = "E0107", "Every server of the pool has weight 0, so none may ever get a connection. A server with \
        weight 0 is passed over; one at least needs a positive weight.";
    MissingKey = "E0108", "A key that has no default is missing: a listener needs `bind`, and `pool` or a \
        route, a pool needs `servers`, a canary `pool` and `share`, a server needs `address`, a health check that logs in needs `user`.";
    BadAddress = "E0109", "An address is an IP address and a port, such as \"192.0.2.1:80\" or \
        \"[2001:db8::1]:80\". Host names are not resolved.";
    BindClash = "E0110", "Two addresses would claim the same port. A wildcard claims its port on every address of \
        its family: 0.0.0.0 for IPv4, [::] for IPv6. The two wildcards stand side by side, for Tidegate's IPv6 \
        sockets take IPv6 alone.";
    EmptyList = "E0111", "The list is empty: a listener needs one address at least, a pool one server, and \
        a list of those who may come in somebody.";
    NotUnique = "E0112", "Two servers of a pool share a name or an address, or two routes of a listener a name. \
        Names tell them apart in logs, metrics and commands; an address twice would get twice its share (use `weight` for that).";
    BadName = "E0113", "Names of listeners, routes, pools and servers appear as metric labels, in log lines and in \
        commands: 1 to 64 letters, digits, `_`, `.`, `:` or `-`.";
    BadPath = "E0114", "The path cannot be used: it is empty, or too long for a unix socket (107 bytes).";
    NoListener = "E0115", "The file defines no listener, so nobody could connect.";
    Loop = "E0116", "A listener's pool holds an address of that same listener: each connection would come back \
        in as a new one until no descriptor is left.";
    FallbackLoop = "E0120", "A chain of `fallback` comes back to a pool that was asked before: it would be asked \
        again and again for a client that nobody can serve.";
    LongFallback = "E0121", "More pools follow each other by `fallback` than Tidegate asks for one client, who \
        waits meanwhile.";
    BadPrefix = "E0130", "A network is an IP address and the number of its bits that count, such as \"10.0.0.0/8\" \
        or \"2001:db8::/32\"; the bits behind those are zero. One address alone is a network, too.";
    BadSecret = "E0131", "A password stands in a file of its own, one line, so that the configuration can be shown. \
        The file must exist, be readable for the user that Tidegate runs as, and hold one line of text.";
    RouteGoal = "E0140", "A route says where its clients go, with `pool`, or that they are refused, with \
        `reject = true`: one of the two.";
    BadAuthorities = "E0141", "`verify` names a file of certificates in PEM, each fit for an authority that may issue \
        servers' certificates. The file must exist, be readable for the user that Tidegate runs as, and hold one \
        at least.";
    TwoClasses = "E0150", "Clients have one class each, which the longest of the networks that they are in names: \
        a network in two classes would name two.";
    UnusedPool = "W0001", "No listener uses the pool and none falls back to it, so it gets no traffic.";
    NoEffect = "W0002", "The key is understood, but another key keeps it from having any effect.";
    SlowCheck = "W0003", "A health check may take longer than the time between two checks: failures are then \
        noticed later than `interval` and `fall` promise.";
    RelativePath = "W0004", "The path depends on the folder that Tidegate is started in, which is `/` under most \
        service managers.";
    HastyTimeout = "W0005", "With `tcp_user_timeout` set, the kernel counts time and not probes: where it is \
        shorter than twice `tcp_keepalive`, one lost keepalive probe ends a healthy idle connection.";
    OpenSecret = "W0030", "Every user of the machine may read the file of a password. It should belong to the user \
        that Tidegate runs as and be readable for nobody else.";
    DeadRoute = "W0040", "The first route that takes a client decides, and earlier routes take every client of this \
        one: it is never reached. The narrower of two networks belongs first.";
    WaitsInVain = "W0050", "With `first_byte_timeout` no server is asked before the client has spoken. In MySQL and \
        SMTP the server speaks first: client and Tidegate would wait for each other until the time is over.";
    RudeCheck = "W0051", "A check that connects to a database and leaves without a login is a broken login to it: \
        MySQL counts such errors against the host that they come from and blocks it in the end, with all of its \
        clients; PostgreSQL logs each. A check of the server's own type logs in and takes leave.";
    NoDestination = "W0052", "0.0.0.0 and [::] are no addresses of a machine. As a destination Linux takes them for \
        this machine, and others for nothing at all.";
    NobodyIn = "W0053", "`deny` names every address that a client of this listener can have, and `allow` names none: \
        whoever comes is reset.";
}

impl Code {
    pub fn is_warning(self) -> bool {
        self.text().starts_with('W')
    }

    /// Something is not there. Not worth saying of a file whose syntax hides a part of it.
    pub fn is_about_absence(self) -> bool {
        use Code::{Empty, MissingKey, NoListener, NoWeight, UnknownPool, UnusedPool};
        matches!(self, Empty | MissingKey | NoListener | NoWeight | UnknownPool | UnusedPool)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_holds_each_code_once() {
        let codes: Vec<_> = Code::ALL.iter().map(|code| code.text()).collect();
        assert!(codes.is_sorted_by(|a, b| a < b), "{codes:?}");
    }

    #[test]
    fn each_code_is_explained_in_a_paragraph_of_plain_sentences() {
        for code in Code::ALL {
            assert!(code.about().ends_with('.') && !code.about().contains("  "), "{}", code.text());
        }
    }
}
