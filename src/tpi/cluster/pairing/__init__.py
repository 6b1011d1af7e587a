"""How devices come to trust each other: join keys, certificates, handshakes at the open port."""
