"""The page of a sweep: template, style sheet and drawing."""
