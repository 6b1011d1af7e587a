"""What devices say to each other: pairing, links, wire messages, allreduce, shard transfer."""
