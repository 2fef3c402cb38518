"""Files that say what this server is and whom it believes: its TLS pair, the CA of its callers, an issuer's keys."""
