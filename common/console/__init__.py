"""What people type and read at a console: the frame of both command lines, tables and colour, spans of time in words."""
