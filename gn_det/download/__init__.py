"""Download files with resume, verification and a local cache."""
