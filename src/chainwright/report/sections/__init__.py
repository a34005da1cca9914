"""The sections of the report that belong to no other room: one file each, its template and its script beside it."""
