"""The bytes of a URL: local files, servers, file systems of fsspec, and pipes if allowed."""
