# The app of incident.py, for puma.
require "fiddle"

FOLDER = ENV.fetch("INCIDENT_FOLDER", ".")
BAD = File.exist?("#{FOLDER}/bad")
KEPT = []
$turns = 0

def ask_dependency
  sleep(File.exist?("#{FOLDER}/slow") ? 0.2 : 0.02)
end

def wait_for_lock
  sleep(120)
end

def resize_image
  Fiddle::Function.new(Fiddle.dlopen(nil)["strlen"], [Fiddle::TYPE_VOIDP], Fiddle::TYPE_INT).call(8)
end

def fill_basket
  KEPT << "x" * (5 << 20)
end

run(lambda do |env|
  case env["PATH_INFO"]
  when "/report" then wait_for_lock
  when "/thumbnail" then resize_image
  when "/basket" then fill_basket
  else ask_dependency
  end
  $turns += 1
  [BAD && $turns.even? ? 500 : 200, {"content-type" => "text/plain", "content-length" => "3"}, ["ok\n"]]
end)
