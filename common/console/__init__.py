"""What people type and read at a console: the frame of both command lines, tables, colour, spans of time."""
