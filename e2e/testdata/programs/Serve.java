import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;

/** A server of the JDK's own module; its argument is a port. */
public class Serve {
	public static void main(String[] args) throws Exception {
		HttpServer s = HttpServer.create(new InetSocketAddress(Integer.parseInt(args[0])), 0);
		byte[] body = ("pid " + ProcessHandle.current().pid() + "\n").getBytes();
		s.createContext("/", x -> {
			x.sendResponseHeaders(200, body.length);
			x.getResponseBody().write(body);
			x.close();
		});
		s.start();
	}
}
