"""The two losses of Eq. 6: flow matching and alignment."""
