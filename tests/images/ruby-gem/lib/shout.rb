def shout(words) = "#{words.upcase}!"
