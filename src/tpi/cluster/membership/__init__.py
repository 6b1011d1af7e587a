"""The devices that are here, with what they offer."""
