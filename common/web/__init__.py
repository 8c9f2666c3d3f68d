"""What both consoles in the browser share: login, protection against other pages, layout, serving."""
