"""Who may call, how much, and over which connection: credentials, quotas, TLS."""
