/hello one
