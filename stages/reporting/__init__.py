"""Building blocks of the report page: style, tables, charts, pictures and its sections."""
