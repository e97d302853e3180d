"""Parts of an unfinished pass, in a folder beside its table, and which job scores which."""
