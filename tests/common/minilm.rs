//! all-MiniLM-L6-v2, fetched on first use.
