"""Images, requests and outcomes to bytes and back; every limit on what is read is here."""
