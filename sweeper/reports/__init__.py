"""From the records of a sweep to what people read: tables, the page, Markdown, the plan."""
