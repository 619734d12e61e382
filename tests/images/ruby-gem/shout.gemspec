Gem::Specification.new do |s|
  s.name = "shout"
  s.version = "1.0.0"
  s.summary = "Speaks up"
  s.authors = ["Nobody"]
  s.files = ["lib/shout.rb"]
end
