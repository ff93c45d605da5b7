"""Two sweeps of one grid in two environments: what differs between them, and what that did."""
