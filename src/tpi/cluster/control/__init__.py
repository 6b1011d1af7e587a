"""Control links: typed messages between paired devices, heartbeats, and noticing that a peer is lost."""
