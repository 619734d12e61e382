package Greeting;
use strict;
use warnings;
sub greet { return "hello, $_[0]" }
1;
