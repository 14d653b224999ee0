"""Fast paths for single operations, each beside its plain-torch reference. Imports only torch."""
