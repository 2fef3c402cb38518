"""`adamix bench faces`: what the ways to the server cost beside the server itself."""
