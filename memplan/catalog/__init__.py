"""Facts as data: one TOML table a subject, each row with its source and date, matched exactly."""
