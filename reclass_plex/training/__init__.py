"""How the shipped heads were made, and how to make them again: `shipped` is the whole story."""
