//! The keys that say where a listener's clients go.

use super::Keys;

pub const ROUTE: Keys = Keys {
    header: "[[listener.NAME.route]]",
    names: &["name", "from", "pool", "canary", "reject"],
    foreign: &[
        ("backend", "pool"),
        ("use_backend", "pool"),
        ("upstream", "pool"),
        ("cluster", "pool"),
        ("service", "pool"),
        ("src", "from"),
        ("source", "from"),
        ("networks", "from"),
        ("source_prefix_ranges", "from"),
        ("client_ip", "from"),
        ("deny", "reject"),
        ("block", "reject"),
        ("split", "canary"),
    ],
};

pub const CANARY: Keys = Keys {
    header: "canary",
    names: &["pool", "share", "from", "by"],
    foreign: &[
        ("backend", "pool"),
        ("upstream", "pool"),
        ("cluster", "pool"),
        ("service", "pool"),
        ("weight", "share"),
        ("percent", "share"),
        ("percentage", "share"),
        ("src", "from"),
        ("source", "from"),
        ("networks", "from"),
        ("on", "by"),
        ("hash_key", "by"),
        ("sticky", "by"),
    ],
};

/// What others call a way to share connections out.
pub const FOREIGN_SPLIT: &[(&str, &str)] = &[
    ("random", "connection"),
    ("request", "connection"),
    ("round-robin", "connection"),
    ("ip", "source-ip"),
    ("source", "source-ip"),
    ("src", "source-ip"),
    ("client", "source-ip"),
    ("client-ip", "source-ip"),
];
