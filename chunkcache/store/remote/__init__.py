"""Tiers on other machines: a server that speaks RESP (Valkey, Redis), and object stores."""
