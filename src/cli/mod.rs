//! One file per subcommand; arguments in, tables or JSON out; no logic.
