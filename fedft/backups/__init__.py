"""Backups: a run's folder, or a site's state folder, in one file, taken while it is used, and put back as it was.

    snapshot    what of a folder belongs into a backup, at one moment; held_files: that it is being read
    archive     the file: written with digests, read as if a stranger had made it

Keys are in no backup: they lie elsewhere, and are kept apart.
"""
