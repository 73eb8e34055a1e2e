"""What people look at: tables on the screen, pictures, and the page that shows runs side by side."""
