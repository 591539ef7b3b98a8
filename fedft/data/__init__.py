"""From files of records to token ids: reading, cutting into clients, templates, batches. No model is loaded here."""
