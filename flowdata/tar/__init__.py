"""What lies in a shard: headers, samples, their index, and rows by number."""
