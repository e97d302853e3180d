"""Loss tables and shard indexes: values, and their files."""
