"""Back attention: deep layers are read back into shallow ones."""
