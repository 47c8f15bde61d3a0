"""The durable store: one group-committing writer, readers of their own, schema and migrations."""
