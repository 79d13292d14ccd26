"""The user's door: archives in, reports out."""
