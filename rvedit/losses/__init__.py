"""The two terms of Eq. 6."""
