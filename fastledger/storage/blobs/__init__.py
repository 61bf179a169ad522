"""The content-addressed blob store: packs, large files, uploads, and what nobody owns."""
