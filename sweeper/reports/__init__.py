"""The records of a sweep become what people read: tables, the page, Markdown, the plan."""
